"""The page of target `web`: files that every web bundle gets as they are, without a build step."""
