"""Frozen networks that turn pixels into numbers, with named ranges of them.

`last`: the network's own pooled last layer: semantic, for retrieval. `taps`: the pooled output of every block, as MLSP
does (Hosu et al., CVPR 2019), with `last` at its end: what an image network knows at each depth, for the score.

    pocket       the small network that milnet ships (pocket.py); needs no package beside torch
    timm/MODEL   any network of timm: the output of every block, and the last layer
    resnet50     the paper's semantic features: the last layer alone, 2,048 numbers (`taps` is the same)
    mlsp         the paper's node features: 43 layers of InceptionResNetV2, 16,928 numbers (`taps`); `last` 1,536 beside

`Backbone.wide` gives the same maps in 5x5 cells instead of their means.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from milnet.errors import MissingExtraError, UsageError, WeightsError, in_short
from milnet.mlsp import Pooling, Tap, mlsp_taps, pool_cells
from milnet.places import bundled
from milnet.pocket import POCKET_CONFIG, PocketNetwork

PREFIX, POCKET = "timm/", "pocket"
# Networks of the paper under short names. `resnet50` has torchvision's weights, as the published code; both weights are
# found in the hub under the name behind it.
NAMED = {"resnet50": "resnet50.tv_in1k", "mlsp": "inception_resnet_v2.tf_in1k"}
PUBLISHED = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}  # the published code's normalisation: none


class Backbone(nn.Module):
    """A frozen network: uint8 RGB [B, 3, H, W] in [0, 255] -> float32 features [B, D].

    `name` as the user writes it; `weights` where they came from; `digest` the sha256 of their values; `ranges` named
    column ranges of D; `native_size` the side in pixels its weights were trained at; `fixed_size`: takes no other.
    `taps`: where its maps are read, by default the output of every block. `normalisation`: mean and std of pixels in
    [0, 1], by default those its weights were trained with. `wide_channels`: C of `wide`, 0 where there are no maps.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        network: nn.Module,
        weights: str,
        config: Mapping[str, Any],
        *,
        taps: Sequence[Tap] | None = None,
        taps_with_last: bool = True,
        normalisation: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.weights = name, weights
        self._spare: list[Backbone] = []  # replicas that nothing passes through just now
        self._alone = Lock()  # one pass at a time: what reads the maps is hung into the network for the pass
        self.network = network.eval().requires_grad_(False)
        self.digest = digest_state(network.state_dict())
        self.native_size = int(config["input_size"][-1])
        self.crop_fraction = float(config["crop_pct"])
        self.fixed_size = bool(config.get("fixed_input_size", False))
        chosen = normalisation or config
        self.normalisation = {part: [float(x) for x in chosen[part]] for part in ("mean", "std")}
        self.register_buffer("mean", torch.tensor(self.normalisation["mean"]).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(self.normalisation["std"]).view(1, 3, 1, 1) * 255)
        self.taps = tuple(map(Tap, block_names(network))) if taps is None else tuple(taps)
        side = self.native_size  # some networks take no much smaller input
        example = torch.arange(3 * side * side).remainder(251).view(1, 3, side, side).to(torch.uint8)
        self._measure(example, taps_with_last)

    @property
    def blocks(self) -> list[str]:
        """The modules whose maps are read, in order."""
        return [tap.module for tap in self.taps]

    @property
    def width(self) -> int:
        """D, the number of features."""
        return max(end for _, end in self.ranges.values())

    def _parts(self, x: Tensor, read: Callable[[Any], Any]) -> tuple[list[Any], Any, Tensor]:
        """What `read` makes of the map of every tap and of the last layer, and the pooled last layer."""
        found: dict[Tap, Any] = {}
        hooks = []

        def keep(tap: Tap) -> Any:
            if tap.side == "input":
                return lambda _module, inputs: found.__setitem__(tap, read(inputs[0]))
            return lambda _module, _inputs, output: found.__setitem__(tap, read(output))

        self._alone.acquire()
        try:
            for tap in self.taps:
                module = self.network.get_submodule(tap.module)
                hook = keep(tap)
                hooks.append(
                    module.register_forward_pre_hook(hook)
                    if tap.side == "input"
                    else module.register_forward_hook(hook)
                )
            features = self.network.forward_features((x.float() - self.mean) / self.std)  # type: ignore[operator]
            last = self.network.forward_head(features, pre_logits=True)  # type: ignore[operator]
        except (AssertionError, RuntimeError) as error:
            # timm asserts the input's size in many words; torch says size or shape
            if isinstance(error, RuntimeError) and not any(word in str(error).lower() for word in ("size", "shape")):
                raise
            raise UsageError(
                f"{self.name} does not take an input of {x.shape[3]}x{x.shape[2]} pixels ({error}): "
                f"try --fit crop --size {self.native_size}"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
            self._alone.release()
        return [found[tap] for tap in self.taps], features, last.flatten(1)

    def replica(self) -> Backbone:
        """The same network on the same weights, for another thread to pass photos through at the same time."""
        with self._alone:
            shared: dict[int, Any] = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
            return deepcopy(self, shared)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy, here or in another process, has of this one: not its lock and its replicas."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_alone", "_spare")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._alone, self._spare = Lock(), []

    @contextmanager
    def borrowed(self) -> Iterator[Backbone]:
        """A replica that nobody else uses meanwhile; those that were given back serve again."""
        try:
            found = self._spare.pop()
        except IndexError:
            found = self.replica()
        try:
            yield found
        finally:
            self._spare.append(found)

    def _measure(self, example: Tensor, taps_with_last: bool) -> None:
        """The column ranges and the channels of wide maps, found by passing one picture."""
        maps, features, last = self._parts(example, lambda output: output)
        taps = [pool_map(output, self.network) for output in maps]

        def alike(a: Tensor) -> bool:  # two means of the same map differ by rounding
            return a.shape == last.shape and torch.allclose(a, last, 1e-4, 1e-6)

        # A network that ends in its last block (ResNet) has `last` among its taps already.
        self._last_is_tap = taps_with_last and bool(taps) and alike(taps[-1])
        below = sum(tap.shape[1] for tap in taps)
        width = below + (0 if self._last_is_tap else last.shape[1])
        self.ranges = {"taps": (0, width if taps_with_last else below), "last": (width - last.shape[1], width)}
        # The last layer is a map as well where nothing but a mean lies behind it.
        plain = isinstance(features, Tensor) and features.ndim == 4 and alike(pool_map(features, self.network))
        self._last_is_wide = taps_with_last and not self._last_is_tap and plain
        channels = below + (last.shape[1] if self._last_is_wide else 0)
        self.wide_channels = channels if all(m.ndim == 4 for m in maps) and (maps or self._last_is_wide) else 0

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 [B, D]; a photo's row does not depend on the others."""
        return self.narrow(x)

    def narrow(self, x: Tensor) -> Tensor:
        """`forward` for an exporter, which cannot follow into inference mode."""
        taps, _, last = self._parts(x, lambda output: pool_map(output, self.network))
        return torch.cat(taps if self._last_is_tap else [*taps, last], dim=1).float()

    @torch.inference_mode()
    def wide(self, x: Tensor, pooling: Pooling = "area") -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> the features [B, D] and the maps of the taps in 5x5 cells [B, 25, C], both float32.

        Raises UsageError for a network whose blocks give no maps.
        """
        if not self.wide_channels:
            raise UsageError(f"{self.name} has no wide features: its blocks give tokens, not maps")

        def read(output: Tensor) -> tuple[Tensor, Tensor]:
            return pool_map(output, self.network), pool_cells(self._nchw(output).float(), pooling)

        taps, features, last = self._parts(x, read)
        narrow = [mean for mean, _ in taps] + ([] if self._last_is_tap else [last])
        cells = [cell for _, cell in taps]
        if self._last_is_wide:
            cells.append(pool_cells(self._nchw(features).float(), pooling))
        return torch.cat(narrow, dim=1).float(), torch.cat(cells, dim=2)

    def _nchw(self, output: Tensor) -> Tensor:
        return output.permute(0, 3, 1, 2) if getattr(self.network, "output_fmt", "NCHW") == "NHWC" else output


def pool_map(output: Any, network: nn.Module) -> Tensor:
    """Mean of a feature map over its positions, [B, C]; maps are NCHW, NHWC or tokens [B, T, C]."""
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        raise UsageError(f"cannot pool a block output of type {type(output).__name__}: the blocks give no maps")
    if output.ndim == 3:
        return output[:, getattr(network, "num_prefix_tokens", 0) :].mean(1)
    return output.mean((1, 2)) if getattr(network, "output_fmt", "NCHW") == "NHWC" else output.mean((2, 3))


def block_names(network: nn.Module) -> list[str]:
    """Names of the residual (or similar) blocks in order: what stands in the network's lists of modules.

    Networks without such lists give the ends of their stages, as timm's own `feature_info` names them.
    """

    def listed(module: nn.Module, prefix: str, inside: bool) -> list[str]:
        names: list[str] = []
        for name, child in module.named_children():
            blocks = getattr(child, "blocks", None)
            if isinstance(child, nn.Sequential | nn.ModuleList):
                names += listed(child, f"{prefix}{name}.", True)
            elif isinstance(blocks, nn.Sequential | nn.ModuleList):
                names += listed(blocks, f"{prefix}{name}.blocks.", True)
            elif inside and next(child.children(), None) is not None:
                names.append(prefix + name)
        return names

    stages: Any = getattr(network, "feature_info", None) or []
    return listed(network, "", False) or [stage["module"] for stage in stages]


def digest_state(state: Mapping[str, Tensor]) -> str:
    """sha256 over the names and values of a state dict, in the order of the names: the identity of weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_backbone(
    name: str,
    weights: str = "cached",
    *,
    offline: bool = False,
    digest: str | None = None,
    normalisation: Mapping[str, Sequence[float]] | None = None,
) -> Backbone:
    """Build a frozen backbone.

    `name`: "pocket", "timm/MODEL[.TAG]", "resnet50" or "mlsp". `weights`: a safetensors FILE; "cached" (the hub's
    local cache, no download; of pocket what is shipped); "hub" (downloads when the cache lacks it); "random:SEED"
    (untrained, for tests and as a lower bound).
    `digest`: refuse weights with other values. `normalisation`: another mean and std than the weights' own. Raises
    UsageError for an unknown name, WeightsError for weights that are missing, unreachable, not strict safetensors of
    this network, or of another digest.
    """
    if name == POCKET:
        return _checked(_pocket(weights, normalisation), digest)
    if not name.startswith(PREFIX) and name not in NAMED:
        raise UsageError(
            f"unknown backbone {name!r}: expected {POCKET}, {', '.join(NAMED)} or {PREFIX}MODEL, for example "
            f"{PREFIX}mobilenetv2_100"
        )
    timm = _import_timm()
    model = NAMED.get(name) or name.removeprefix(PREFIX)
    if not timm.is_model(model.split(".")[0]):
        near = difflib.get_close_matches(model.split(".")[0], timm.list_models(), 5)
        raise UsageError(f"timm has no model {model!r}; similar: {', '.join(near) or 'none'}")
    seed = _seed(weights) if weights.startswith("random:") else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            network: nn.Module = timm.create_model(model, pretrained=False, num_classes=0)
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"timm cannot build {model!r}: {error}") from error
    published: Any = network.pretrained_cfg
    config = timm.data.resolve_model_data_config(network)
    config["fixed_input_size"] = published.get("fixed_input_size", False)
    if not weights.startswith("random:"):
        path, source = _weights_file(weights, model, network, offline)
        _load_strict(network, path, name)
        weights = source
    taps = {"resnet50": (), "mlsp": mlsp_taps(network) if name == "mlsp" else ()}.get(name)
    backbone = Backbone(
        name, network, weights, config, taps=taps, taps_with_last=name != "mlsp", normalisation=normalisation
    )
    return _checked(backbone, digest)


def _checked(backbone: Backbone, digest: str | None) -> Backbone:
    if digest is not None and backbone.digest != digest:
        raise WeightsError(
            f"the weights of {backbone.name} from {backbone.weights} are not those the features were made with: "
            f"expected sha256 {digest[:12]}..., got {backbone.digest[:12]}...; pass the right file with --weights"
        )
    return backbone


def _seed(weights: str) -> int:
    try:
        seed = int(weights.removeprefix("random:"))
    except ValueError:
        seed = -1
    if not 0 <= seed < 2**63:
        raise UsageError(f"--weights {weights}: expected random:SEED with a whole number from 0 to 2^63 - 1")
    return seed


def _pocket(weights: str, normalisation: Mapping[str, Sequence[float]] | None) -> Backbone:
    """The shipped network; with "random:SEED" the same one untrained, with a FILE another one of the same form."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(weights) if weights.startswith("random:") else 0)
        network = PocketNetwork()
    if not weights.startswith("random:"):
        path = bundled("pocket.safetensors") if weights in ("cached", "hub") else Path(weights).expanduser()
        if not path.is_file():
            raise WeightsError(f"--weights {weights}: expected a safetensors file, 'cached' or 'random:SEED'")
        _load_strict(network, path, POCKET)
    return Backbone(POCKET, network, weights, POCKET_CONFIG, normalisation=normalisation)


def _import_timm() -> Any:
    try:
        from milnet._torchvision import make_torchvision_importable

        make_torchvision_importable()
        import timm
        import timm.data
    except ImportError as error:
        raise MissingExtraError(error.name or "timm", "timm", "a timm/... backbone") from error
    return timm


def _weights_file(weights: str, model: str, network: Any, offline: bool) -> tuple[Path, str]:
    """The safetensors file for `weights`, and how to name it in a manifest."""
    if weights not in ("cached", "hub"):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise WeightsError(f"--weights {weights}: expected a safetensors file, 'cached', 'hub' or 'random:SEED'")
        return path, str(path.resolve())
    import huggingface_hub

    repository = network.pretrained_cfg.get("hf_hub_id")
    if not repository:
        raise WeightsError(f"{model} has no published weights on the hub: pass --weights FILE")
    advice = (
        f"fetch model.safetensors of {repository} where the hub can be reached and pass --weights FILE, "
        f"or use --weights random:0 for an untrained network"
    )
    cached = huggingface_hub.try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached), f"hub:{repository}"
    if weights == "cached" or offline:
        how = "--offline forbids downloading" if weights == "hub" else "nothing is downloaded unless --weights hub asks"
        raise WeightsError(f"the weights of {repository} are not in the local hub cache and {how}: {advice}")
    try:
        return Path(huggingface_hub.hf_hub_download(repository, "model.safetensors")), f"hub:{repository}"
    except (OSError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = in_short(error)
        raise WeightsError(f"cannot get the weights of {repository} from the hub ({reason}): {advice}") from error


def _load_strict(network: nn.Module, path: Path, name: str) -> None:
    """Load a safetensors file; every tensor must fit, except a classifier that is not used here."""
    import safetensors
    import safetensors.torch

    try:
        state = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is no safetensors file ({error}); other formats can run code and are refused"
        ) from error
    wanted = network.state_dict()
    classifiers = network.pretrained_cfg.get("classifier", "")  # type: ignore[union-attr,operator]
    heads = tuple(f"{head}." for head in ([classifiers] if isinstance(classifiers, str) else classifiers) if head)
    state = {name: tensor for name, tensor in state.items() if name in wanted or not name.startswith(heads)}
    missing, surplus = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = [k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape]
    # Older files lack the batch counters, which evaluation does not read.
    missing = [k for k in missing if not k.endswith("num_batches_tracked")]
    if missing or surplus or shapes:
        raise WeightsError(
            f"{path} does not hold the weights of {name}: "
            f"{len(missing)} tensors missing ({', '.join(missing[:3])}), "
            f"{len(surplus)} unknown ({', '.join(surplus[:3])}), "
            f"{len(shapes)} of another shape ({', '.join(shapes[:3])})"
        )
    network.load_state_dict(state, strict=False)
