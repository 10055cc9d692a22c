// ExecuTorch with XNNPACK, on the CPU.

package edgevit

import java.io.File
import java.nio.FloatBuffer
import org.json.JSONObject
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

internal const val TARGET = "executorch"

internal class Engine(file: File, manifest: JSONObject, private val shape: LongArray, threads: Int) : AutoCloseable {
    private val module: Module =
        try {
            if (threads > 0) Module.load(file.path, Module.LOAD_MODE_FILE, threads) else Module.load(file.path)
        } catch (error: RuntimeException) {
            throw Refused("ExecuTorch cannot load ${file.name}: ${error.message}")
        }

    /** float32 [1, 3, H, W] in a direct buffer, which is not copied -> scores [classes]. */
    fun run(input: FloatBuffer): FloatArray = module.forward(EValue.from(Tensor.fromBlob(input, shape)))[0].toTensor().dataAsFloatArray

    override fun close() = module.destroy()
}
