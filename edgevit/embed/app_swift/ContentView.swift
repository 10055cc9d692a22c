// A SwiftUI sample: choose a picture, see the likeliest classes. Copy it into your app target, with the folder `bundle`.

import Classifier
import PhotosUI
import SwiftUI

@MainActor
final class Model: ObservableObject {
    @Published var predictions: [Prediction] = []
    @Published var message = "Loading the model…"
    private var classifier: Classifier?

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
        guard let classifier else { return }
        guard let image = UIImage(data: data)?.cgImage else {
            message = "This picture cannot be read"
            return
        }
        do {
            predictions = try await classifier.run(try Pixels(image))
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

    var body: some View {
        VStack(alignment: .leading) {
            PhotosPicker("Choose a picture", selection: $picked, matching: .images)
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
        .onReceive(NotificationCenter.default.publisher(for: UIApplication.didReceiveMemoryWarningNotification)) { _ in
            model.release()
        }
    }
}
