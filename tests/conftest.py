"""What the root's tests share: hypothesis profiles. A failing example prints how to repeat it."""

from hypothesis import settings

settings.register_profile("default", deadline=None, print_blob=True, max_examples=150)
settings.register_profile("nightly", deadline=None, print_blob=True, max_examples=3000)
settings.load_profile("default")
