"""Templates of the Swift app; `edgevit.embed.swift` copies them as they are."""
