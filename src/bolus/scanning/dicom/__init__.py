"""DICOM files found by their content: headers, kinds, series in order, and rows."""
