// A bundle on the device: verified before anything of it is used.

package edgevit

import java.io.File
import java.nio.file.Files
import java.security.KeyFactory
import java.security.MessageDigest
import java.security.Signature
import java.security.spec.X509EncodedKeySpec
import org.json.JSONArray
import org.json.JSONException
import org.json.JSONObject

/** What an app's user or maker can fix: one line. */
class Refused(message: String) : Exception(message)

internal const val AGAIN = "export and embed it again"
private const val SCHEMA = 1

/** The manifest of a bundle whose files all have the sha256 it names. key: ed25519, 64 hexadecimal digits (API 33). */
internal fun readManifest(bundle: File, key: String?): JSONObject {
    val file = File(bundle, "manifest.json")
    if (!file.isFile) throw Refused("${bundle.name} is not a bundle: it has no manifest.json")
    val data = file.readBytes()
    if (key != null) checkSignature(File(bundle, "manifest.sig"), data, key)
    try {
        val manifest = JSONObject(String(data, Charsets.UTF_8))
        val schema = manifest.getInt("schema")
        if (schema != SCHEMA) throw Refused("manifest.json has schema $schema; this loader reads schema $SCHEMA")
        val files = manifest.getJSONObject("files")
        for (name in files.keys()) checkFile(bundle, name, files.getString(name))
        if (!files.has(manifest.getString("entry"))) throw Refused("the entry is not among the files of manifest.json; $AGAIN")
        return manifest
    } catch (error: JSONException) {
        throw Refused("manifest.json is incomplete or malformed (${error.message}); $AGAIN")
    }
}

private fun checkFile(bundle: File, name: String, digest: String) {
    val parts = name.split("/")
    if ('\\' in name || ':' in name || parts.any { it == "" || it == "." || it == ".." }) {
        throw Refused("the manifest names $name, which is not a path inside the bundle")
    }
    val file = File(bundle, name)
    if (!file.isFile || Files.isSymbolicLink(file.toPath())) throw Refused("the bundle is incomplete: $name is missing; $AGAIN")
    val hash = MessageDigest.getInstance("SHA-256")
    file.inputStream().use { stream ->
        val part = ByteArray(1 shl 16)
        while (true) {
            val count = stream.read(part)
            if (count < 0) break
            hash.update(part, 0, count)
        }
    }
    val found = hash.digest().joinToString("") { "%02x".format(it) }
    if (found != digest) throw Refused("$name is not the file that was exported (sha256 differs); $AGAIN")
}

private fun checkSignature(file: File, data: ByteArray, key: String) {
    if (!file.isFile) throw Refused("the bundle is not signed: it has no manifest.sig")
    // RFC 8410: the raw key behind twelve bytes that name the algorithm
    val encoded = ("302a300506032b6570032100" + key).chunked(2).map { it.toInt(16).toByte() }.toByteArray()
    val verifier = Signature.getInstance("Ed25519")
    verifier.initVerify(KeyFactory.getInstance("Ed25519").generatePublic(X509EncodedKeySpec(encoded)))
    verifier.update(data)
    if (!verifier.verify(file.readBytes())) throw Refused("manifest.sig is not by this app's key, or manifest.json was changed")
}

internal fun JSONArray.longs(): List<Long> = (0 until length()).map { getLong(it) }

internal fun JSONArray.floats(): FloatArray = FloatArray(length()) { getDouble(it).toFloat() }
