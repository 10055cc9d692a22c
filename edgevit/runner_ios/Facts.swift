// What the system tells of itself.

import Foundation
import UIKit

enum Facts {
    /// Such as iPhone15,2.
    static var model: String {
        var system = utsname()
        uname(&system)
        return withUnsafeBytes(of: &system.machine) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    }

    static var thermal: String {
        switch ProcessInfo.processInfo.thermalState {
        case .nominal: return "nominal"
        case .fair: return "fair"
        case .serious: return "serious"
        case .critical: return "critical"
        @unknown default: return "unknown"
        }
    }

    @MainActor static func all(trees: [String]) -> [String: Any] {
        UIDevice.current.isBatteryMonitoringEnabled = true
        let marks = trees.filter { FileManager.default.fileExists(atPath: Job.work.appendingPathComponent("trees/\($0).whole").path) }
        return [
            "model": model,
            "os": "\(UIDevice.current.systemName) \(ProcessInfo.processInfo.operatingSystemVersionString)",
            "arch": "arm64",
            "cores": ProcessInfo.processInfo.processorCount,
            "memory_bytes": ProcessInfo.processInfo.physicalMemory,
            "thermal": thermal,
            "low_power": ProcessInfo.processInfo.isLowPowerModeEnabled,
            "battery": UIDevice.current.batteryLevel,
            "charging": UIDevice.current.batteryState == .charging || UIDevice.current.batteryState == .full,
            "present": marks,
        ]
    }

    /// Bytes of this process: the most so far that the system counts against it.
    static func peakMemory() -> Int {
        var info = task_vm_info_data_t()
        var count = mach_msg_type_number_t(MemoryLayout<task_vm_info_data_t>.size / MemoryLayout<natural_t>.size)
        let status = withUnsafeMutablePointer(to: &info) { pointer in
            pointer.withMemoryRebound(to: integer_t.self, capacity: Int(count)) {
                task_info(mach_task_self_, task_flavor_t(TASK_VM_INFO), $0, &count)
            }
        }
        return status == KERN_SUCCESS ? Int(info.ledger_phys_footprint_peak) : 0
    }
}
