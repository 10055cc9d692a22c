// A sample: choose a picture, see the likeliest classes. Copy it into your app module.

package edgevit.sample

import android.app.Activity
import android.content.Intent
import android.graphics.ImageDecoder
import android.os.Bundle
import android.widget.Button
import android.widget.LinearLayout
import android.widget.TextView
import edgevit.Classifier
import edgevit.Pixels
import edgevit.Refused
import java.io.File
import java.util.concurrent.Executors

class MainActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor() // one image at a time, off the main thread
    private lateinit var text: TextView
    private val classifier by lazy { Classifier(copied("bundle")) }

    override fun onCreate(state: Bundle?) {
        super.onCreate(state)
        text = TextView(this)
        val choose = Button(this).apply { text = "Choose a picture" }
        choose.setOnClickListener { startActivityForResult(Intent(Intent.ACTION_GET_CONTENT).setType("image/*"), 1) }
        setContentView(LinearLayout(this).apply { orientation = LinearLayout.VERTICAL; addView(choose); addView(text) })
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val picture = data?.data ?: return
        worker.execute {
            val shown = try {
                val source = ImageDecoder.createSource(contentResolver, picture)
                val bitmap = ImageDecoder.decodeBitmap(source) { decoder, _, _ -> decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE }
                classifier.run(Pixels.of(bitmap)).joinToString("\n") { "%.1f %%  %s".format(100 * it.share, it.label) }
            } catch (error: Refused) {
                error.message
            }
            runOnUiThread { text.text = shown }
        }
    }

    /** The runtimes open files: assets are copied, and verified on every load. */
    private fun copied(name: String): File {
        val target = File(filesDir, name)
        val children = assets.list(name).orEmpty() // a file has none
        if (children.isEmpty()) assets.open(name).use { from -> target.outputStream().use { from.copyTo(it) } }
        else target.mkdirs()
        for (child in children) copied("$name/$child")
        return target
    }
}
