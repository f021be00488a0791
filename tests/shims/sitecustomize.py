"""Lets accelerate shard on processors, where it would fall back to DDP: FSDP2 itself works there, over gloo.
Lets it share layers there, which it would refuse.
Lets DeepSpeed use gloo alone there, where it would first compile an operation of its own for minutes.

Python imports this by itself where this folder is on PYTHONPATH.
"""

import importlib.abc
import importlib.machinery
import sys


class _Loader(importlib.abc.Loader):
    def __init__(self, loader, change):
        self.loader, self.change = loader, change

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        self.change(module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, CHANGES[name])
        return spec


def _shard_on_processors(module):
    original = module.AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == module.DistributedType.MULTI_CPU:
            self.distributed_type = module.DistributedType.FSDP
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = fsdp_plugin
            module.PartialState._shared_state["distributed_type"] = self.distributed_type

    module.AcceleratorState.__init__ = init


def _share_layers_on_processors(module):
    original = module.Accelerator.multi_device

    def multi_device(self):
        layers = self.parallelism_config is not None and self.parallelism_config.tp_enabled
        shared = layers and self.distributed_type == module.DistributedType.MULTI_CPU
        return shared or original.fget(self)

    module.Accelerator.multi_device = property(multi_device)


def _compile_nothing(module):
    module.build_shm_op = lambda: None


CHANGES = {
    "accelerate.state": _shard_on_processors,
    "accelerate.accelerator": _share_layers_on_processors,
    "deepspeed.comm.torch": _compile_nothing,
}
sys.meta_path.insert(0, _Finder())
