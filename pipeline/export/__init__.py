"""Write checkpoints for other programs: ONNX, torch.export, OpenVINO, and a folder for model hubs."""
