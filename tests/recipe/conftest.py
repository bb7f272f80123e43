"""The tiny world that these tests share with those of the command line."""

from tests.pipelines.conftest import undrawn as undrawn
from tests.pipelines.conftest import world as world
