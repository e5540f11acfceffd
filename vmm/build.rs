//! The structures of KVM, out of the kernel's own header.

use std::path::PathBuf;

/// What is written as `struct ...` in the header, and the numbers that go with it.
const WANTED: &str = "kvm_(run|regs|sregs|segment|dtable|xsave|xcrs|vcpu_events|mp_state|debugregs|lapic_state|irqchip|pit_state2|\
                      pit_config|clock_data|irq_level|cpuid2|cpuid_entry2|msrs|msr_entry|msr_list|userspace_memory_region|dirty_log)";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let of = |name: &str| std::env::var(name).expect("cargo tells what it builds for");
    if (of("CARGO_CFG_TARGET_OS"), of("CARGO_CFG_TARGET_ARCH")) != ("linux".into(), "x86_64".into()) {
        return;
    }
    bindgen::builder()
        .header_contents("kvm.h", "#include <linux/kvm.h>")
        .allowlist_type(WANTED)
        .allowlist_var("KVM_(API_VERSION|CAP_.*|EXIT_.*|MEM_LOG_DIRTY_PAGES|PIT_SPEAKER_DUMMY|INTERNAL_ERROR_.*|CLOCK_TSC_STABLE)")
        .allowlist_recursively(true)
        .layout_tests(false)
        .generate()
        .expect("the kernel's headers are installed")
        .write_to_file(PathBuf::from(of("OUT_DIR")).join("kvm.rs"))
        .expect("cargo's folder can be written");
}
