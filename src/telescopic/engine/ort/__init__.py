"""All that is ONNX Runtime's own: how its sessions are opened, and graphs optimised and cut for this machine."""
