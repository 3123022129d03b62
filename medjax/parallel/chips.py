"""What one chip of each kind can do and hold: the facts behind every estimate and every utilisation (MFU).

All figures are of a chip. A JAX device is a chip, but one of two cores on TPU v2, v3 and 7x: `Chip.device` divides.

  usable_hbm_bytes  what a program can have. TPU: the limit in the out-of-memory message of libtpu 0.0.42 (v4 as one
                    device a chip); it keeps 0.25 to 2.5 GiB for itself. GPU: three quarters, JAX's usual share, to be
                    raised by XLA_PYTHON_CLIENT_MEM_FRACTION
  bf16_flops        dense, a multiplication and an addition count 2; float16 on T4 and V100, which have no bfloat16
  hbm_bytes         GPU: as the vendor counts, whose gigabytes are 2**30 bytes (a driver reports 79.6 GiB of an H100 of
                    80 GB); a sixteenth less on cards with GDDR memory (T4, A10, L4, L40S), which ECC takes of theirs
  ici_bytes_per_s   TPU: one link, one way; a chip has two links an axis, one to each side. GPU: all NVLinks of a chip,
                    one way; PCIe where it has none, or a bridge to one or three others alone. 0: not known
  ici_axes          axes of the torus; 1 for GPUs, which reach every other GPU that NVLink joins them to alike
  dcn_bytes_per_s   one chip's share of the network between slices or nodes. 0: not known
  host_bytes_per_s  PCIe between one chip and its host's memory, one way. 0: not known
  clock_hz          TPU: bf16_flops over the operations of its matrix units in a cycle (2 x 128 x 128 each; v6e and a
                    core of 7x have 16 such), rounded; 0 for GPUs

Sources. TPU: operations, VMEM and matrix units of jax 0.10.2, jax/_src/pallas/mosaic/tpu_info.py; HBM bandwidth of
Google Cloud's pages on each chip (tpu_info has v5p 11 % lower); links, network, PCIe, pods and rings of J. Austin
et al., "How to Scale Your Model", part 2 (jax-ml/scaling-book@54e2c43), whose links are 10 % below Google Cloud's.
GPU: NVIDIA's data sheets, without sparsity (half of the figure with it); memory as drivers report it in
modal-labs/modal-client, pull request 2797; NVLink and network of the same book's chapter on GPUs
(jax-ml/scaling-book@1a55377), the network that of DGX reference designs: a cloud's machines may have less. GB200 is the
NVL72, 72 GPUs on one NVLink, four a host; GH200 a host of one GPU, with the network to others.
"""

from dataclasses import dataclass, replace

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One kind of chip; units in the names, conventions above.

    name        as in topologies: "v5e"
    kinds       beginnings of `jax.Device.device_kind`
    cores       JAX devices that a chip makes
    pod         chips along each axis of the largest slice; GPUs: those that NVLink joins, a node but for GB200
    host_chips  of one host
    """

    name: str
    kinds: tuple[str, ...]
    bf16_flops: float
    hbm_bytes: int
    usable_hbm_bytes: int
    hbm_bytes_per_s: float
    ici_bytes_per_s: float
    ici_axes: int
    dcn_bytes_per_s: float
    host_bytes_per_s: float = 0.0
    vmem_bytes: int = 0
    clock_hz: float = 0.0
    cores: int = 1
    pod: tuple[int, ...] = ()
    host_chips: int = 4

    @property
    def is_tpu(self) -> bool:
        return self.kinds[0].startswith("TPU")

    @property
    def device(self) -> "Chip":
        """The share of one JAX device: everything but the links divided by the number of cores."""
        n = self.cores
        return replace(
            self,
            bf16_flops=self.bf16_flops / n,
            hbm_bytes=self.hbm_bytes // n,
            usable_hbm_bytes=self.usable_hbm_bytes // n,
            hbm_bytes_per_s=self.hbm_bytes_per_s / n,
            ici_bytes_per_s=self.ici_bytes_per_s / n,
            dcn_bytes_per_s=self.dcn_bytes_per_s / n,
            host_bytes_per_s=self.host_bytes_per_s / n,
            vmem_bytes=self.vmem_bytes // n,
            cores=1,
        )

    def flops(self, width: int) -> float:
        """Operations a second of matrix products, width bytes a number: 2 or 4.

        float32 as medjax computes it: six bfloat16 products on TPU; on GPUs a sixteenth of the rate (A100 and H100; no
        TF32).
        """
        return self.bf16_flops if width == 2 else self.bf16_flops / (6 if self.is_tpu else 16)

    def wraps(self, shape: tuple[int, ...]) -> tuple[bool, ...]:
        """Which axes of a slice are rings: closed by a link from the last chip to the first.

        Chips of a flat torus (v5e, v6e): axes of the full 16. Those of cubes (v4, v5p, 7x): all axes of a slice made
        of whole cubes of 4 x 4 x 4, else none. GPUs: always, as a switch joins them all.
        """
        if not self.is_tpu:
            return (True,) * len(shape)
        if self.ici_axes == 3:
            return (all(size % 4 == 0 for size in shape),) * len(shape)
        return tuple(size == 16 for size in shape)


def _tpu(name: str, kinds: tuple[str, ...], tera: float, gib: float, usable: float, bandwidth: float, **rest) -> Chip:
    """TPU with operations in 1e12/s, memory in GiB, bandwidth in 1e9 bytes/s."""
    return Chip(name, kinds, tera * 1e12, int(gib * GIB), int(usable * GIB), bandwidth * 1e9, **rest)


def _gpu(
    name: str,
    kind: str,
    tera: float,
    gib: float,
    bandwidth: float,
    link: float,
    dcn: float = 0.0,
    joined: int = 8,
    host: int = 8,
) -> Chip:
    """GPU with operations in 1e12/s, memory in GiB, bandwidths in 1e9 bytes/s; joined by NVLink, on a host."""
    return Chip(
        name,
        (kind,),
        tera * 1e12,
        hbm_bytes=int(gib * GIB),
        usable_hbm_bytes=int(gib * GIB * 3 / 4),
        hbm_bytes_per_s=bandwidth * 1e9,
        ici_bytes_per_s=link * 1e9,
        ici_axes=1,
        dcn_bytes_per_s=dcn * 1e9,
        pod=(joined,),
        host_chips=host,
    )


_MIB = 2**20
_ECC = 15 / 16  # of GDDR memory
# in the order in which they are tried on a device kind: longer beginnings first
CHIPS: tuple[Chip, ...] = (
    _tpu("v2", ("TPU v2",), 46, 16, 15, 716, ici_bytes_per_s=0, ici_axes=2, dcn_bytes_per_s=0,
         vmem_bytes=32 * _MIB, clock_hz=0.7e9, cores=2, pod=(16, 16)),
    _tpu("v3", ("TPU v3",), 140, 32, 30.96, 900, ici_bytes_per_s=1e11, ici_axes=2, dcn_bytes_per_s=0,
         vmem_bytes=32 * _MIB, clock_hz=1.07e9, cores=2, pod=(32, 32)),
    _tpu("v4i", ("TPU v4 lite",), 137, 8, 8, 614, ici_bytes_per_s=0, ici_axes=2, dcn_bytes_per_s=0,
         vmem_bytes=16 * _MIB, clock_hz=1.05e9, pod=(2, 2)),
    _tpu("v4", ("TPU v4",), 275, 32, 30.75, 1228, ici_bytes_per_s=4.5e10, ici_axes=3, dcn_bytes_per_s=6.25e9,
         host_bytes_per_s=1.6e10, vmem_bytes=32 * _MIB, clock_hz=1.05e9, pod=(16, 16, 16)),
    _tpu("v5e", ("TPU v5 lite", "TPU v5e"), 197, 16, 15.75, 819, ici_bytes_per_s=4.5e10, ici_axes=2,
         dcn_bytes_per_s=3.125e9, host_bytes_per_s=1.6e10, vmem_bytes=128 * _MIB, clock_hz=1.5e9, pod=(16, 16)),
    _tpu("v5p", ("TPU v5",), 459, 96, 95.74, 2765, ici_bytes_per_s=9e10, ici_axes=3, dcn_bytes_per_s=6.25e9,
         host_bytes_per_s=1.6e10, vmem_bytes=128 * _MIB, clock_hz=1.75e9, pod=(16, 20, 28)),
    _tpu("v6e", ("TPU v6 lite", "TPU v6"), 920, 32, 31.25, 1638, ici_bytes_per_s=9e10, ici_axes=2,
         dcn_bytes_per_s=12.5e9, host_bytes_per_s=3.2e10, vmem_bytes=128 * _MIB, clock_hz=1.75e9, pod=(16, 16)),
    _tpu("tpu7x", ("TPU7x",), 2310, 192, 189.5, 7380, ici_bytes_per_s=9e10, ici_axes=3, dcn_bytes_per_s=12.5e9,
         vmem_bytes=128 * _MIB, clock_hz=2.2e9, cores=2, pod=(16, 24, 24)),
    _gpu("gb200", "NVIDIA GB200", 2500, 186, 8000, 900, 50, joined=72, host=4),
    _gpu("b200", "NVIDIA B200", 2250, 180, 8000, 900, 50),
    _gpu("gh200", "NVIDIA GH200", 989, 96, 4000, 450, 50, joined=1, host=1),
    _gpu("h200-nvl", "NVIDIA H200 NVL", 836, 141, 4800, 64),
    _gpu("h200", "NVIDIA H200", 989, 141, 4800, 450, 50),
    _gpu("h100-pcie", "NVIDIA H100 PCIe", 756, 80, 2000, 64),
    _gpu("h100-nvl", "NVIDIA H100 NVL", 836, 94, 3900, 64),
    _gpu("h100", "NVIDIA H100", 989, 80, 3350, 450, 50),
    _gpu("a100-40gb", "NVIDIA A100-SXM4-40GB", 312, 40, 1555, 300, 25),
    _gpu("a100-40gb-pcie", "NVIDIA A100-PCIE-40GB", 312, 40, 1555, 32),
    _gpu("a100-pcie", "NVIDIA A100 80GB PCIe", 312, 80, 1935, 32),
    _gpu("a100", "NVIDIA A100", 312, 80, 2039, 300, 25),
    _gpu("l40s", "NVIDIA L40S", 362, 48 * _ECC, 864, 32),
    _gpu("l4", "NVIDIA L4", 121, 24 * _ECC, 300, 32),
    _gpu("a10g", "NVIDIA A10G", 70, 24 * _ECC, 600, 32),
    _gpu("a10", "NVIDIA A10", 125, 24 * _ECC, 600, 32),
    _gpu("t4", "Tesla T4", 65, 16 * _ECC, 320, 16),
    _gpu("v100-32gb", "Tesla V100-SXM2-32GB", 125, 32, 900, 150),
    _gpu("v100", "Tesla V100", 125, 16, 900, 150),
)  # fmt: skip


def chip(name: str) -> Chip:
    """The chip of that name; ValueError with all names for another."""
    found = next((one for one in CHIPS if one.name == name.lower()), None)
    if found is None:
        raise ValueError(f"chip: got {name!r}, expected one of {', '.join(one.name for one in CHIPS)}; choose one.")
    return found


def chip_of(device_kind: str) -> Chip | None:
    """The chip whose kinds begin a name as in `jax.devices()[0].device_kind`; None for one that the table lacks."""
    return next((one for one in CHIPS if device_kind.startswith(one.kinds)), None)


def stated_by_jax(device_kind: str) -> Chip | None:
    """A TPU newer than the table, as far as the installed JAX states it for its own kernels; None where it does not.

    Links and network are not stated: 0. All of its memory counts as usable.
    """
    try:
        from jax._src.pallas.mosaic import tpu_info

        version = tpu_info.chip_version_from_device_kind(device_kind)
        if version is None:
            return None
        core = tpu_info.get_tpu_info_for_chip(version, 1)
        cores = version.num_physical_tensor_cores_per_chip
        return Chip(
            f"tpu{version}",
            (device_kind,),
            float(core.bf16_ops_per_second * cores),
            hbm_bytes=core.hbm_capacity_bytes * cores,
            usable_hbm_bytes=core.hbm_capacity_bytes * cores,
            hbm_bytes_per_s=float(core.mem_bw_bytes_per_second * cores),
            ici_bytes_per_s=0.0,
            ici_axes=2 if version.is_lite else 3,
            dcn_bytes_per_s=0.0,
            vmem_bytes=core.vmem_capacity_bytes * cores,
            cores=1 if version.supports_megacore else cores,
        )
    except (ImportError, AttributeError, ValueError):  # a private table: another JAX may keep it elsewhere
        return None
