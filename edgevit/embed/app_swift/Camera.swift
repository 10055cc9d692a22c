// Frames of the back camera for the sample; the app's Info.plist needs NSCameraUsageDescription.

import AVFoundation
import Classifier

/// Gives one frame at a time: those that come while the last one is classified are dropped.
final class Camera: NSObject, AVCaptureVideoDataOutputSampleBufferDelegate, @unchecked Sendable {
    private let session = AVCaptureSession()
    private let queue = DispatchQueue(label: "camera") // everything below happens on it
    private var busy = false
    private let classify: @Sendable (Pixels) async -> Void
    private let fail: @Sendable (Error) async -> Void

    init(classify: @escaping @Sendable (Pixels) async -> Void, fail: @escaping @Sendable (Error) async -> Void) {
        self.classify = classify
        self.fail = fail
    }

    func start() async throws {
        guard await AVCaptureDevice.requestAccess(for: .video) else { throw Refused("the camera may not be used: see Settings") }
        guard let device = AVCaptureDevice.default(.builtInWideAngleCamera, for: .video, position: .back) else {
            throw Refused("there is no camera on the back")
        }
        let input = try AVCaptureDeviceInput(device: device)
        let output = AVCaptureVideoDataOutput()
        output.videoSettings = [kCVPixelBufferPixelFormatTypeKey as String: kCVPixelFormatType_32BGRA]
        output.alwaysDiscardsLateVideoFrames = true
        output.setSampleBufferDelegate(self, queue: queue)
        session.beginConfiguration()
        session.sessionPreset = .vga640x480
        guard session.canAddInput(input), session.canAddOutput(output) else { throw Refused("the camera gives no frames") }
        session.addInput(input)
        session.addOutput(output)
        if let connection = output.connection(with: .video) { // upright, as the pictures that accuracy was measured on
            if #available(iOS 17, *) { connection.videoRotationAngle = 90 } else { connection.videoOrientation = .portrait }
        }
        session.commitConfiguration()
        queue.async { self.session.startRunning() }
    }

    func stop() {
        queue.async { self.session.stopRunning() }
    }

    func captureOutput(_: AVCaptureOutput, didOutput sample: CMSampleBuffer, from _: AVCaptureConnection) {
        guard !busy, let frame = CMSampleBufferGetImageBuffer(sample) else { return }
        busy = true
        let pixels = Result { try Pixels(frame) } // copied: the camera wants its buffer back
        Task {
            switch pixels {
            case let .success(pixels): await classify(pixels)
            case let .failure(error): await fail(error)
            }
            queue.async { self.busy = false }
        }
    }
}
