"""Teachers, the NSR loss, and block-wise distillation of one elastic stage.

Nothing is imported here, so that the settings (`.config`) can be read without torch.
"""
