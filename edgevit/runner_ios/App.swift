// Launched by edgevit with --job PATH it does the job, leaves its record and ends; by a finger it says what it is.

import SwiftUI

@main
struct RunnerApp: App {
    var body: some Scene {
        WindowGroup { RunnerView() }
    }
}

struct RunnerView: View {
    @State private var text = "edgevit runner: waits for edgevit profile"

    var body: some View {
        Text(text).padding().task {
            let words = CommandLine.arguments
            guard let place = words.firstIndex(of: "--job"), place + 1 < words.count else { return }
            UIApplication.shared.isIdleTimerDisabled = true
            text = "edgevit measures: leave this app in front"
            await perform(words[place + 1])
            exit(0) // also after an error: the record has it, and a way that fails tells less
        }
    }
}

/// What went wrong is in the record, and on the console where even that cannot be written.
private func perform(_ path: String) async {
    var id = ""
    do {
        let job = try Job.read(path)
        id = job.id
        switch job.kind {
        case "about": try leave(await Facts.all(trees: job.trees ?? []), id: id)
        case "check": try leave(try await check(job), id: id)
        case "round":
            let task = Task.detached(priority: .userInitiated) { try leave(try await measure(job), id: job.id) }
            try await task.value
        default: throw Failure("this app knows no job of kind \(job.kind): write it again")
        }
        print("edgevit: done")
    } catch {
        try? leave(["error": "\(error)"], id: id)
        print("edgevit: \(error)")
    }
}
