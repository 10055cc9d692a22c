"""Templates of the C++ app; `edgevit.embed.cpp` copies them as they are."""
