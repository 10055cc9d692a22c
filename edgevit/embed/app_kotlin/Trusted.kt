// Whose bundles this app takes.

package edgevit

/** Public ed25519 key, 64 hexadecimal digits, that must have signed the manifest; null takes unsigned bundles. */
val KEY: String? = null
