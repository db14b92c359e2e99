"""Frames, Video-LLaVA and video question answering, one floor above `fastervlm`."""
