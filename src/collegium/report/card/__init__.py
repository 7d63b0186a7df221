"""The model card of a student: what it was made from, under which licences, and how it was measured. No torch.

Everything here takes plain data, as `evaluation.json` holds it, so that a card can be written again without
models, text or a recipe.
"""
