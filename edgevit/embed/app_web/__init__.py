"""Files of the web app; `edgevit.embed.web` copies them around a web bundle."""
