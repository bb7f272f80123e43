"""The shards that these tests share."""

from tests.data.fixtures import folder as folder
from tests.data.fixtures import photos as photos
from tests.data.fixtures import shard as shard
