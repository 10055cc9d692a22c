"""Templates of the runner app for iPhone and iPad; `edgevit.devices.app_project` copies them as they are."""
