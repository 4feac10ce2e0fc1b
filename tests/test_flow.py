"""Flow: .flo files byte by byte, DIS on a known shift, warps on hand-made flow, estimators by name."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steadyseg.flow import (
    UNKNOWN,
    DISFlow,
    FileFlow,
    FlowEstimator,
    SourceFlow,
    build_flow,
    consistent,
    displacement,
    read_flo,
    shared_flow,
    warp_etc,
    warp_nearest,
    warp_vspw,
    write_flo,
)
from steadyseg.types import ConfigError, DataError, Frame, ShapeError


def constant_flow(dx: float, dy: float, height: int, width: int) -> Tensor:
    return torch.tensor([dx, dy], dtype=torch.float32).view(2, 1, 1).expand(2, height, width).contiguous()


def frame(index: int = 0, height: int = 4, width: int = 6) -> Frame:
    return Frame(torch.zeros(3, height, width, dtype=torch.uint8), index, float(index))


def texture(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).random((height, width, 3), dtype=np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return ((smooth - smooth.min()) / (smooth.max() - smooth.min()) * 255).astype(np.uint8)


class KnownMotion:
    """A source that knows its flow: 1 pixel to the right; the left column is hidden."""

    def flow(self, name: str, frame: int) -> Tensor:
        return constant_flow(1.0 if name == "right" else 0.0, 0.0, 4, 6)

    def visible(self, name: str, frame: int) -> Tensor:
        return torch.arange(6).expand(4, 6) > 0


# ---- .flo files ----------------------------------------------------------------------------------------------------


def test_flo_round_trip_and_layout(tmp_path: Path) -> None:
    flow = torch.randn(2, 3, 5)
    write_flo(tmp_path / "a.flo", flow)
    assert torch.equal(read_flo(tmp_path / "a.flo"), flow)
    raw = (tmp_path / "a.flo").read_bytes()
    assert struct.unpack("<fii", raw[:12]) == (202021.25, 5, 3)
    assert struct.unpack("<ff", raw[12 + 8 * 7 : 12 + 8 * 8]) == (flow[0, 1, 2].item(), flow[1, 1, 2].item())
    assert np.array_equal(cv2.readOpticalFlow(str(tmp_path / "a.flo")), flow.permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no .flo file"),
        (b"PIEH" + bytes(4), "no .flo file"),
        (b"\x89PNG" + bytes(40), "no .flo file"),
        (struct.pack("<fii", 202021.25, 2, 1) + bytes(8), "has 20 bytes; a .flo file of 1x2 has 28"),
        (struct.pack("<fii", 202021.25, -1, -1) + bytes(8), "has 20 bytes"),
    ],
)
def test_damaged_flo(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.flo").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_flo(tmp_path / "a.flo")


def test_flo_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.flo: cannot read the flow"):
        read_flo(tmp_path / "none.flo")
    with pytest.raises(DataError, match="cannot write the flow"):
        write_flo(tmp_path / "none" / "a.flo", torch.zeros(2, 1, 1))


def test_file_flow(tmp_path: Path) -> None:
    (tmp_path / "video").mkdir()
    forth, back = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    write_flo(tmp_path / "video" / "000007.flo", forth)
    write_flo(tmp_path / "video" / "000008_back.flo", back)
    flow = FileFlow(tmp_path)
    flow.start("video")
    assert torch.equal(flow(frame(7), frame(8)), forth)
    assert torch.equal(flow(frame(8), frame(7)), back)
    with pytest.raises(DataError, match=r"000007\.flo is 4x6; expected 4x5"):
        flow(frame(7, width=5), frame(8, width=5))
    with pytest.raises(DataError, match=r"000009\.flo: cannot read"):
        flow(frame(9), frame(10))


# ---- estimators ----------------------------------------------------------------------------------------------------


def test_dis_finds_a_shift() -> None:
    whole = texture(100, 120)
    first, second = (torch.from_numpy(whole[y : y + 80, x : x + 96]).permute(2, 0, 1) for y, x in ((5, 5), (8, 9)))
    flow = DISFlow()(Frame(first, 0, 0.0), Frame(second, 1, 0.0))
    assert flow.shape == (2, 80, 96)
    assert flow.dtype == torch.float32
    assert flow[:, 15:-15, 15:-15].mean((1, 2)).tolist() == pytest.approx([-4, -3], abs=0.1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (12, 40), (8, 64), (64, 8)])
def test_dis_takes_any_size(height: int, width: int) -> None:
    image = torch.from_numpy(texture(height, width)).permute(2, 0, 1)
    flow = DISFlow()(Frame(image, 0, 0.0), Frame(image, 1, 0.0))
    assert flow.shape == (2, height, width)
    assert flow.abs().max() < 0.1


def test_source_flow() -> None:
    flow = SourceFlow(KnownMotion())
    flow.start("right")
    assert torch.equal(flow(frame(3), frame(4)), constant_flow(1, 0, 4, 6))
    assert not flow.visible(frame(3))[:, 0].any()
    with pytest.raises(DataError, match="flow from frame 3 to 5"):
        flow(frame(3), frame(5))


def test_build_by_name(tmp_path: Path) -> None:
    built = [build_flow("dis"), build_flow("files", root=tmp_path), build_flow("source", source=KnownMotion())]
    assert [flow.name for flow in built] == ["dis", "files", "source"]
    assert all(isinstance(flow, FlowEstimator) for flow in built)


def test_build_refuses() -> None:
    with pytest.raises(ConfigError, match="unknown flow 'dsi'; expected one of dis, files, source, raft"):
        build_flow("dsi")
    with pytest.raises(ConfigError, match=r"needs the folder of the \.flo files"):
        build_flow("files")
    with pytest.raises(ConfigError, match="found no folder nowhere"):
        build_flow("files", root="nowhere")
    with pytest.raises(ConfigError, match="flow 'dis' reads no files"):
        build_flow("dis", root="somewhere")
    with pytest.raises(ConfigError, match="got no source"):
        build_flow("source")
    with pytest.raises(ConfigError, match="got SimpleNamespace: choose flow 'dis'"):
        build_flow("source", source=SimpleNamespace())


def install_raft(monkeypatch: pytest.MonkeyPatch, model: object) -> None:
    """Put a stand-in where torchvision's RAFT is imported from."""
    module = ModuleType("torchvision.models.optical_flow")
    module.Raft_Large_Weights = SimpleNamespace(C_T_V2="things")  # type: ignore[attr-defined]
    module.raft_large = model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", ModuleType("torchvision.models"))
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", module)


def test_raft_pads_and_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Network(torch.nn.Module):
        def forward(self, first: Tensor, second: Tensor, num_flow_updates: int) -> list[Tensor]:
            assert not torch.is_autocast_enabled("cpu")
            calls.append((first.shape[-2:], num_flow_updates, first.min().item(), first.max().item()))
            return [torch.zeros(0), first[:, :2]]

    install_raft(monkeypatch, lambda weights, progress: Network())
    image = torch.randint(0, 256, (3, 130, 50), dtype=torch.uint8)
    image[0, 0, :2] = torch.tensor([0, 255])
    flow = build_flow("raft")
    flow.start("video")
    assert flow.name == "raft"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = flow(Frame(image, 0, 0.0), Frame(image, 1, 0.0))
    assert calls == [((136, 128), 20, -1.0, 1.0)]
    assert torch.allclose(found, image[:2].float() / 127.5 - 1)  # the crop undoes the padding


def test_raft_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(**options: object) -> None:
        raise OSError("no network")

    install_raft(monkeypatch, fetch)
    with pytest.raises(ConfigError, match=r"could not fetch the weights \(no network\)"):
        build_flow("raft")
    monkeypatch.setitem(sys.modules, "torchvision.models.optical_flow", None)
    for ask in (build_flow, shared_flow):
        with pytest.raises(ConfigError, match=r"flow 'raft' needs torchvision: install it, or choose flow 'dis'$"):
            ask("raft")


# ---- inside a model ------------------------------------------------------------------------------------------------


def test_displacement_leads_to_the_key_frame() -> None:
    """What moved 6 pixels to the right was 6 to the left in the key frame; the items of a batch are apart."""
    rough = torch.rand(1, 3, 12, 20, generator=torch.Generator().manual_seed(0), requires_grad=True)
    scene = F.interpolate(rough, (96, 160), mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)
    key, now = scene[..., 16:80, 32:128], scene[..., 16:80, 26:122]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        flow = displacement("dis", torch.cat((now, key)), torch.cat((key, key)))
    assert flow.shape == (2, 2, 64, 96)
    assert flow.dtype == torch.float32
    assert not flow.requires_grad
    torch.testing.assert_close(flow[0, :, 16:-16, 16:-16].mean((1, 2)), torch.tensor([-6.0, 0.0]), atol=0.3, rtol=0)
    assert flow[1].abs().max() < 0.1


def test_displacement_is_estimated_in_full_precision_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def find(first: Frame, second: Frame) -> Tensor:
        seen.extend((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
        return torch.full((2, 4, 6), float(first.image[0, 0, 0]) - float(second.image[0, 0, 0]))

    monkeypatch.setattr("steadyseg.flow.shared_flow", lambda name: find)
    now, key = (torch.full((2, 3, 4, 6), value, dtype=torch.uint8) for value in (7, 3))
    key[1] += 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        flow = displacement("dis", now, key)
    assert flow[:, 0, 0, 0].tolist() == [4.0, 3.0]
    assert seen == [False] * 4


def test_displacement_needs_two_frames_of_one_shape() -> None:
    one = torch.zeros(2, 3, 48, 64, dtype=torch.uint8)
    for other in (one[:1], one[..., 1:], one.float()):
        with pytest.raises(ShapeError, match="key frame"):
            displacement("dis", one, other)
    with pytest.raises(ShapeError, match="frame is torch"):
        displacement("dis", one.float(), one)


# ---- warps ---------------------------------------------------------------------------------------------------------

GRID = torch.arange(12, dtype=torch.uint8).view(3, 4)


def test_nearest_warp_looks_where_the_flow_leads() -> None:
    warped = warp_nearest(GRID, constant_flow(1, -1, 3, 4))
    assert warped.tolist() == [[UNKNOWN] * 4, [1, 2, 3, UNKNOWN], [5, 6, 7, UNKNOWN]]
    assert torch.equal(warp_nearest(GRID, constant_flow(0.49, -0.5, 3, 4)), GRID)
    assert warp_nearest(GRID, constant_flow(0.5, 0, 3, 4))[0].tolist() == [1, 2, 3, UNKNOWN]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e10, 3e9])
def test_unknown_flow_is_left_out(value: float) -> None:
    flow = torch.zeros(2, 3, 4)
    flow[1, 2, 0] = value
    expected = GRID.clone()
    expected[2, 0] = UNKNOWN
    assert torch.equal(warp_nearest(GRID, flow), expected)


def test_nearest_warp_refuses_another_size() -> None:
    with pytest.raises(ShapeError, match=r"flow has shape \[2, 3, 3\]; expected \[2, 3, 4\]"):
        warp_nearest(GRID, torch.zeros(2, 3, 3))


def vspw_by_hand(preds: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Pixel x is read at round((x + dx) * W / (W - 1) - 1/2); 0 outside."""
    height, width = preds.shape
    out = np.zeros_like(preds)
    for y in range(height):
        for x in range(width):
            column = round((x + flow[0, y, x]) * width / (width - 1) - 0.5)
            row = round((y + flow[1, y, x]) * height / (height - 1) - 0.5)
            if 0 <= column < width and 0 <= row < height:
                out[y, x] = preds[row, column]
    return out


def test_vspw_warp_has_its_half_pixel() -> None:
    rng = np.random.default_rng(0)
    preds = rng.integers(1, 9, (9, 13)).astype(np.uint8)
    flow = rng.uniform(-3, 3, (2, 9, 13)).astype(np.float32)
    assert np.array_equal(warp_vspw(torch.from_numpy(preds), torch.from_numpy(flow)).numpy(), vspw_by_hand(preds, flow))
    moved = warp_vspw(GRID, constant_flow(0.2, 0, 3, 4))
    assert not torch.equal(moved, warp_nearest(GRID, constant_flow(0.2, 0, 3, 4)))


def test_etc_warp_mixes_class_numbers_and_cuts() -> None:
    preds = torch.tensor([[0, 10, 10, 3]], dtype=torch.uint8)
    assert warp_etc(preds, constant_flow(0.5, 0, 1, 4)).tolist() == [[5, 10, 6, 3]]  # 6.5 is cut, the border repeats
    assert warp_etc(preds, constant_flow(-9, 7, 1, 4)).tolist() == [[0, 0, 0, 0]]
    assert torch.equal(warp_etc(GRID, torch.zeros(2, 3, 4)), GRID)
    assert warp_etc(GRID, constant_flow(0.25, 0.5, 3, 4))[0, 0] == 2  # 0.25 + 4 * 0.5 = 2.25


def test_flow_forth_and_back() -> None:
    forth = constant_flow(2, 0, 6, 8)
    assert consistent(forth, -forth).all()
    assert not consistent(forth, forth).any()
    back = -forth
    back[:, :, 5] = 9.0  # what lies at column 5 moves on its own; column 3 leads there
    assert (~consistent(forth, back)).nonzero()[:, 1].unique().tolist() == [3]
    unknown = forth.clone()
    unknown[0, 0, 0] = float("nan")
    assert (~consistent(unknown, -forth)).nonzero().tolist() == [[0, 0]]
