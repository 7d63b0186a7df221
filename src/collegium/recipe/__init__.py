"""The configuration of a run: one YAML file, checked strictly, as frozen sections. No torch.

May import `base`. Begin with `recipe`, whose fields are the keys of the file; `file` reads it, and `methods` says
what `method: NAME` fills in.
"""
