// ONNX Runtime, on the CPU.

package edgevit

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import ai.onnxruntime.TensorInfo
import java.io.File
import java.nio.FloatBuffer
import org.json.JSONObject

internal const val TARGET = "ort"

internal class Engine(file: File, manifest: JSONObject, private val shape: LongArray, threads: Int) : AutoCloseable {
    private val environment = OrtEnvironment.getEnvironment()
    private val session: OrtSession
    private val name: String

    init {
        try {
            val options = OrtSession.SessionOptions()
            if (threads > 0) options.setIntraOpNumThreads(threads)
            val config = manifest.getJSONObject("runtime").getJSONObject("options").optJSONObject("session_config") ?: JSONObject()
            for (key in config.keys()) options.addConfigEntry(key, config.getString(key))
            session = environment.createSession(file.path, options)
        } catch (error: OrtException) {
            throw Refused("ONNX Runtime cannot load ${file.name}: ${error.message}")
        }
        name = session.inputNames.first()
        val taken = (session.inputInfo.getValue(name).info as TensorInfo).shape
        if (!taken.contentEquals(shape)) {
            throw Refused("the engine takes ${taken.contentToString()}, the manifest says ${shape.contentToString()}; $AGAIN")
        }
    }

    /** float32 [1, 3, H, W] in a direct buffer, which is not copied -> scores [classes]. */
    fun run(input: FloatBuffer): FloatArray =
        OnnxTensor.createTensor(environment, input, shape).use { tensor ->
            session.run(mapOf(name to tensor)).use { found ->
                val scores = (found[0] as OnnxTensor).floatBuffer
                FloatArray(scores.remaining()).also { scores.get(it) }
            }
        }

    override fun close() = session.close()
}
