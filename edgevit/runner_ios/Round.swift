// The loop: load, first inference, warm-up, samples. The same rules as every runner of edgevit.

import Foundation

private func now() -> Double { Double(DispatchTime.now().uptimeNanoseconds) / 1e9 }

private func median(_ values: [Double]) -> Double {
    let sorted = values.sorted()
    let half = sorted.count / 2
    return sorted.count % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2
}

/// Seconds of one inference.
private func once(_ engine: Engine) async throws -> Double {
    let start = now()
    try await engine.run()
    return now() - start
}

/// Until `least` seconds have passed and two successive window medians agree within 2 %, at most `most`.
private func warmUp(_ engine: Engine, least: Double, most: Double) async throws -> [String: Any] {
    let start = now()
    var (count, stable) = (0, false)
    var medians: [Double] = []
    while least > 0, !stable, now() - start < most {
        var window: [Double] = []
        let began = now()
        while window.count < 5 || now() - began < least / 4 {
            window.append(try await once(engine))
            if now() - start >= most { break }
        }
        count += window.count
        medians.append(median(window))
        let settled = medians.count > 1 && abs(medians[medians.count - 1] / medians[medians.count - 2] - 1) <= 0.02
        stable = settled && now() - start >= least
    }
    return ["seconds": now() - start, "samples": count, "stable": stable]
}

/// The record of one round.
func measure(_ job: Job) async throws -> [String: Any] {
    let (least, most) = (try job.need(job.minSeconds, "min_seconds"), try job.need(job.maxSeconds, "max_seconds"))
    let (samples, warm) = (try job.need(job.minSamples, "min_samples"), try job.need(job.warmupS, "warmup_s"))
    let values = try job.inputs()[0]
    let before = Facts.thermal
    let start = now()
    let engine = try await load(job)
    let loaded = now() - start
    try engine.prepare(values)
    let first = try await once(engine)
    let warmed = try await warmUp(engine, least: warm, most: most)
    var times: [Double] = []
    let began = now()
    while times.isEmpty || now() - began < most {
        times.append(try await once(engine))
        if times.count >= samples, now() - began >= least { break }
    }
    var record: [String: Any] = [
        "runtime": job.runner == "coreml" ? "Core ML" : "Core AI",
        "runtime_version": ProcessInfo.processInfo.operatingSystemVersionString,
        "load_ms": loaded * 1e3,
        "first_ms": first * 1e3,
        "warmup": warmed,
        "samples_ms": times.map { $0 * 1e3 },
        "peak_memory_bytes": Facts.peakMemory(),
        "applied": ["compute_units": job.options?.units ?? "all"],
        "thermal_before": before,
        "thermal_after": Facts.thermal,
    ]
    record["placement"] = engine.placement
    return record
}

/// Outputs of every pushed input.
func check(_ job: Job) async throws -> [String: Any] {
    let engine = try await load(job)
    var found: [[Float]] = []
    for values in try job.inputs() {
        try engine.prepare(values)
        try await engine.run()
        found.append(try engine.scores())
    }
    return ["outputs": found]
}
