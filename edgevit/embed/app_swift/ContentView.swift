// A SwiftUI sample: choose a picture or point the camera, see the likeliest classes. Copy it into your app target, with the folder `bundle`.

import Classifier
import PhotosUI
import SwiftUI

@MainActor
final class Model: ObservableObject {
    @Published var predictions: [Prediction] = []
    @Published var message = "Loading the model…"
    private var classifier: Classifier?
    private var camera: Camera?

    func load() async {
        do {
            let bundle = Bundle.main.bundleURL.appendingPathComponent("bundle")
            classifier = try await Classifier(bundle: bundle) // compiles on the first launch: seconds
            message = "Choose a picture"
        } catch {
            message = "\(error)"
        }
    }

    func classify(_ data: Data) async {
        guard let image = UIImage(data: data)?.cgImage else {
            message = "This picture cannot be read"
            return
        }
        await classify { try Pixels(image) }
    }

    func watch(_ on: Bool) async {
        camera?.stop()
        camera = nil
        guard on else { return }
        let found = Camera(
            classify: { pixels in await self.classify { pixels } },
            fail: { error in await self.classify { throw error } }
        )
        do {
            try await found.start()
            camera = found
        } catch {
            message = "\(error)"
        }
    }

    private func classify(_ pixels: @Sendable () throws -> Pixels) async {
        guard let classifier else { return }
        do {
            predictions = try await classifier.run(try pixels())
            message = ""
        } catch {
            message = "\(error)"
        }
    }

    /// iOS asks for memory: the next picture loads the model again, from the compiled one.
    func release() {
        classifier = nil
        predictions = []
        Task { await load() }
    }
}

struct ContentView: View {
    @StateObject private var model = Model()
    @State private var picked: PhotosPickerItem?
    @State private var watching = false

    var body: some View {
        VStack(alignment: .leading) {
            PhotosPicker("Choose a picture", selection: $picked, matching: .images)
            Toggle("Camera", isOn: $watching)
            Text(model.message)
            List(model.predictions) { prediction in
                HStack {
                    Text(prediction.label)
                    Spacer()
                    Text(prediction.share, format: .percent.precision(.fractionLength(1)))
                }
            }
        }
        .padding()
        .task { await model.load() }
        .onChange(of: picked) { item in
            Task {
                if let data = try? await item?.loadTransferable(type: Data.self) { await model.classify(data) }
            }
        }
        .onChange(of: watching) { on in
            Task { await model.watch(on) }
        }
        .onReceive(NotificationCenter.default.publisher(for: UIApplication.didReceiveMemoryWarningNotification)) { _ in
            model.release()
        }
    }
}
