"""Ray Tune over the stages' own code; modules of this room import Ray at once."""

from pipelines.cluster.ray_environment import set_ray_environment

set_ray_environment()
