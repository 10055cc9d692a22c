// Preprocessing gives the tensors that accuracy was measured with. On a device or emulator: assets hold golden/.

package edgevit

import androidx.test.platform.app.InstrumentationRegistry
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Test

class GoldenTest {
    private val assets = InstrumentationRegistry.getInstrumentation().context.assets

    private fun read(name: String): ByteArray = assets.open("golden/$name").use { it.readBytes() }

    @Test
    fun preprocessingIsExact() {
        val index = JSONObject(String(read("golden.json")))
        val preprocess = Preprocess(index.getJSONObject("preprocess"))
        val vectors = index.getJSONArray("vectors")
        for (i in 0 until vectors.length()) {
            val vector = vectors.getJSONObject(i)
            val (width, height) = vector.getInt("width") to vector.getInt("height")
            val file = read(vector.getString("image")) // binary PPM: pixels at its end
            val pixels = Pixels(file.copyOfRange(file.size - width * height * 3, file.size), width, height)
            val tensor = FloatBuffer.allocate(3 * preprocess.height * preprocess.width)
            preprocess.run(pixels, tensor)
            val want = ByteBuffer.wrap(read(vector.getString("tensor"))).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
            for (at in 0 until tensor.capacity()) assertEquals(vector.getString("image"), want[at], tensor[at], 0f)
        }
    }
}
