// An image -> its likeliest classes. Call it off the main thread: `withContext(Dispatchers.Default) { classifier.run(...) }`.

package edgevit

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.exp
import org.json.JSONException
import org.json.JSONObject

data class Prediction(val index: Int, val label: String, val score: Float, val share: Float)

/**
 * One Classifier runs one image at a time; load it once and keep it. key: public ed25519 key, 64 hexadecimal digits, that
 * must have signed the bundle. Throws Refused.
 */
class Classifier(bundle: File, key: String? = KEY, threads: Int = 0) : AutoCloseable {
    private val manifest: JSONObject = readManifest(bundle, key)
    private val preprocess: Preprocess
    private val labels: List<String>
    private val engine: Engine
    private val input: ByteBuffer

    init {
        try {
            val target = manifest.getString("target")
            if (target != TARGET) throw Refused("the bundle is for $target, this app runs $TARGET; embed that bundle again")
            preprocess = Preprocess(manifest.getJSONObject("preprocess"))
            val shape = manifest.getJSONObject("input").getJSONArray("shape").longs()
            val wanted = listOf(1L, 3L, preprocess.height.toLong(), preprocess.width.toLong())
            if (shape != wanted) throw Refused("the input is $shape, preprocessing makes $wanted; $AGAIN")
            val output = manifest.getJSONObject("output").getJSONArray("shape").longs()
            if (output.size != 2 || output[0] != 1L) throw Refused("the output is $output, expected [1, classes]; $AGAIN")
            labels = if (manifest.isNull("labels")) List(output[1].toInt()) { "class $it" }
            else File(bundle, manifest.getString("labels")).readLines()
            if (labels.size.toLong() != output[1]) throw Refused("there are ${labels.size} labels for ${output[1]} classes; $AGAIN")
            engine = Engine(File(bundle, manifest.getString("entry")), manifest, shape.toLongArray(), threads)
            input = ByteBuffer.allocateDirect(4 * shape.reduce(Long::times).toInt()).order(ByteOrder.nativeOrder())
        } catch (error: JSONException) {
            throw Refused("manifest.json is incomplete or malformed (${error.message}); $AGAIN")
        }
    }

    /** The likeliest classes, best first; equal scores stand in class order. */
    fun run(image: Pixels, top: Int = 5): List<Prediction> {
        preprocess.run(image, input.asFloatBuffer())
        val scores = engine.run(input.asFloatBuffer())
        if (scores.size != labels.size) throw Refused("the engine gave ${scores.size} scores for ${labels.size} classes; $AGAIN")
        if (!scores.all { it.isFinite() }) throw Refused("the engine gave NaN or infinite scores")
        val most = scores.max()
        val sum = scores.sumOf { exp((it - most).toDouble()) }
        return scores.indices.sortedByDescending { scores[it] }.take(top).map {
            Prediction(it, labels[it], scores[it], (exp((scores[it] - most).toDouble()) / sum).toFloat())
        }
    }

    override fun close() = engine.close()
}
