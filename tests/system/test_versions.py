"""What is recorded of the machine, from what systems print."""

from sottovoce.system.versions import Processor, environment, parse_cpuinfo, parse_sysctl, processor

X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 7B13
flags\t\t: fpu vme avx avx2 sha_ni
bugs\t\t: none

processor\t: 1
model name\t: another
flags\t\t: fpu avx2 avx512f
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd crc32 asimddp\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
MAC = "machdep.cpu.brand_string: Apple M1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\nhw.optional.arm.AdvSIMD: 1\n"
INTEL_MAC = "machdep.cpu.brand_string: Intel(R) Core(TM) i7\nmachdep.cpu.leaf7_features: RDWRFSGS BMI1 AVX2 AVX512F\n"


def test_processors_by_name_and_instruction_sets() -> None:
    assert parse_cpuinfo(X86) == Processor(name="AMD EPYC 7B13", instruction_sets=("avx2",))
    assert parse_cpuinfo(X86.replace("sha_ni", "avx512f avx512_vnni")).instruction_sets == ("avx2", "avx512f", "avx512_vnni")
    assert parse_cpuinfo(ARM) == Processor(name="Raspberry Pi 5 Model B Rev 1.0", instruction_sets=("asimd", "asimddp"))
    assert parse_sysctl(MAC) == Processor(name="Apple M1", instruction_sets=("asimd", "asimddp"))
    assert parse_sysctl(INTEL_MAC) == Processor(name="Intel(R) Core(TM) i7", instruction_sets=("avx2", "avx512f"))
    assert processor().name


def test_versions_name_the_packages() -> None:
    assert {"python", "sottovoce", "torch"} <= environment().keys()
