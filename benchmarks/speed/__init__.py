"""Running times of the library, as ratios measured side by side."""
