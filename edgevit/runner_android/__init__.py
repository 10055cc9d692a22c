"""Templates of the runner for Android; `edgevit.devices.app_project` adds parts of `edgevit.embed.app_cpp`."""
