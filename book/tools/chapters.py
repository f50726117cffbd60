"""The chapters as files, for the tools and the tests: `latentspace.course.chapters` itself."""

import sys

from latentspace.course import chapters

sys.modules[__name__] = chapters
