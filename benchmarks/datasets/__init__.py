"""Data sets with boxes: real ones in their own layouts, and one made without a download."""
