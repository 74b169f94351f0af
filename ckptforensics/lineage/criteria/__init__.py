"""The criteria by which two models are judged, each with what it cannot be misled by."""
