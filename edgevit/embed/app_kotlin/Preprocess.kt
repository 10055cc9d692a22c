// Image -> input tensor, number by number as edgevit prepares it: Android's own scaling has other filters than accuracy
// was measured with, so Pillow's resize is written out.

package edgevit

import android.graphics.Bitmap
import java.nio.FloatBuffer
import kotlin.math.abs
import kotlin.math.floor
import kotlin.math.max
import kotlin.math.min
import org.json.JSONObject

/** RGB, 8 bits each, rows from top left; turn a camera's frame before. */
class Pixels(val rgb: ByteArray, val width: Int, val height: Int) {
    init {
        if (width < 1 || height < 1 || rgb.size != width * height * 3) throw Refused("${rgb.size} bytes are no RGB image of $width x $height")
    }

    companion object {
        fun of(bitmap: Bitmap): Pixels {
            val colors = IntArray(bitmap.width * bitmap.height)
            bitmap.getPixels(colors, 0, bitmap.width, 0, 0, bitmap.width, bitmap.height)
            val rgb = ByteArray(colors.size * 3)
            colors.forEachIndexed { i, color ->
                rgb[3 * i] = (color shr 16).toByte()
                rgb[3 * i + 1] = (color shr 8).toByte()
                rgb[3 * i + 2] = color.toByte()
            }
            return Pixels(rgb, bitmap.width, bitmap.height)
        }
    }
}

private const val BITS = 22 // fraction bits of a weight

private class Taps(val first: Int, val weights: IntArray)

private fun bilinear(x: Double): Double = max(0.0, 1 - abs(x))

private fun cubic(x: Double): Double {
    val a = -0.5
    val t = abs(x)
    if (t < 1) return ((a + 2) * t - (a + 3)) * t * t + 1
    return if (t < 2) (((t - 5) * t + 8) * t - 4) * a else 0.0
}

internal class Preprocess(spec: JSONObject) {
    private val size = spec.getJSONArray("size").longs().map { it.toInt() }
    private val resize = spec.getString("resize")
    private val cropPct = spec.getDouble("crop_pct")
    private val mean = spec.getJSONArray("mean").floats()
    private val std = spec.getJSONArray("std").floats()
    private val support: Double
    private val weight: (Double) -> Double
    val height = size[0]
    val width = size[1]

    init {
        if (resize !in listOf("squash", "shortest", "squash_crop")) throw Refused("this loader does not know the resize $resize")
        val interpolation = spec.getString("interpolation")
        when (interpolation) {
            "bilinear" -> { support = 1.0; weight = ::bilinear }
            "bicubic" -> { support = 2.0; weight = ::cubic }
            else -> throw Refused("this loader has bilinear and bicubic, the manifest says $interpolation")
        }
    }

    /** Writes float32 [3, H, W]. */
    fun run(image: Pixels, tensor: FloatBuffer) {
        var tall = height.toLong()
        var wide = width.toLong()
        if (resize != "squash") {
            tall = floor(height / cropPct).toLong()
            wide = floor(width / cropPct).toLong()
            if (resize == "shortest") {
                if (tall * image.width >= wide * image.height) wide = tall * image.width / image.height
                else tall = wide * image.height / image.width
            }
        }
        val left = Math.rint((wide - width) / 2.0).toLong()
        val top = Math.rint((tall - height) / 2.0).toLong()
        val columns = taps(image.width, wide, left, width)
        val rows = taps(image.height, tall, top, height)
        val downFirst = tall < image.height && image.height - tall > 2 * (image.width - wide) // Pillow 13's order
        val fitted = if (downFirst) across(down(image.rgb, image.width, rows), image.width, columns)
        else down(across(image.rgb, image.width, columns), width, rows)
        for (channel in 0 until 3) {
            val values = FloatArray(256) { (it / 255f - mean[channel]) / std[channel] }
            for (pixel in 0 until height * width) {
                tensor.put(channel * height * width + pixel, values[fitted[3 * pixel + channel].toInt() and 255])
            }
        }
    }

    private fun taps(from: Int, to: Long, start: Long, count: Int): List<Taps> {
        val scale = from.toDouble() / to
        val stretch = max(scale, 1.0) // shrinking widens the filter: no input pixel is skipped
        return (start until start + count).map { position ->
            if (from.toLong() == to) return@map Taps(position.toInt(), intArrayOf(1 shl BITS))
            val centre = (position + 0.5) * scale
            val first = max(0, (centre - support * stretch + 0.5).toInt())
            val last = min(from, (centre + support * stretch + 0.5).toInt())
            val raw = DoubleArray(last - first) { weight((it + first - centre + 0.5) / stretch) }
            val sum = raw.sum()
            Taps(first, IntArray(raw.size) { (raw[it] / sum * (1 shl BITS) + if (raw[it] < 0) -0.5 else 0.5).toInt() })
        }
    }

    private fun across(source: ByteArray, width: Int, plan: List<Taps>): ByteArray =
        pass(source, plan, source.size / (3 * width), 3, 3 * width, 3, 3 * plan.size)

    private fun down(source: ByteArray, width: Int, plan: List<Taps>): ByteArray =
        pass(source, plan, width, 3 * width, 3, 3 * width, 3)

    /** One pass along an axis whose neighbours lie `step` bytes apart; lines start `stride` bytes apart. */
    private fun pass(source: ByteArray, plan: List<Taps>, lines: Int, step: Int, stride: Int, outStep: Int, outStride: Int): ByteArray {
        val target = ByteArray(3 * lines * plan.size)
        for (line in 0 until lines) {
            plan.forEachIndexed { position, taps ->
                for (channel in 0 until 3) {
                    var sum = 1 shl (BITS - 1)
                    var at = line * stride + taps.first * step + channel
                    for (weight in taps.weights) {
                        sum += (source[at].toInt() and 255) * weight
                        at += step
                    }
                    target[line * outStride + position * outStep + channel] = (sum shr BITS).coerceIn(0, 255).toByte()
                }
            }
        }
        return target
    }
}
