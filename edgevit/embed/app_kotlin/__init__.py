"""Templates of the Kotlin app; `edgevit.embed.kotlin` copies them as they are."""
