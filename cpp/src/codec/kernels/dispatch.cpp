#include "codec/kernels/dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <span>
#include <stdexcept>

#include "orbitsplit/codec.hpp"

#if defined(ORBITSPLIT_ISA_X86)
#include <cpuid.h>
#elif defined(ORBITSPLIT_ISA_ARM) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace orbitsplit {

namespace {

using kernels::Isa;
using kernels::Kernels;

// From the slowest to the fastest. A set without its own kernels for a topic uses those of an earlier set.
constexpr Kernels sets[] = {
    {Isa::scalar, &kernels::scalar::convert, &kernels::scalar::groups, &kernels::scalar::select,
     &kernels::scalar::channels, &kernels::scalar::planes, &kernels::scalar::rans,
     &kernels::scalar::checksum},
#if defined(ORBITSPLIT_ISA_X86)
    {Isa::avx2, &kernels::avx2::convert, &kernels::avx2::groups, &kernels::scalar::select,
     &kernels::scalar::channels, &kernels::scalar::planes, &kernels::scalar::rans, &kernels::avx2::checksum},
    {Isa::avx512, &kernels::avx512::convert, &kernels::avx512::groups, &kernels::avx512::select,
     &kernels::avx512::channels, &kernels::avx512::planes, &kernels::avx512::rans,
     &kernels::avx512::checksum},
#elif defined(ORBITSPLIT_ISA_ARM)
    {Isa::neon, &kernels::neon::convert, &kernels::neon::groups, &kernels::scalar::select,
     &kernels::scalar::channels, &kernels::scalar::planes, &kernels::scalar::rans, &kernels::neon::checksum},
#endif
};

constexpr std::string_view names[] = {"scalar", "avx2", "avx512", "neon"};

std::string_view name_of(const Kernels& set) { return names[static_cast<std::size_t>(set.isa)]; }

#if defined(ORBITSPLIT_ISA_X86)

struct Registers {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf) {
    Registers r;
    __get_cpuid_count(leaf, 0, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

bool has(unsigned reg, std::initializer_list<int> bits) {
    for (const int bit : bits)
        if ((reg >> bit & 1U) == 0) return false;
    return true;
}

// Registers that the operating system saves: an instruction set is usable only if its registers are saved.
unsigned saved_states() {
    if (!has(cpuid(1).ecx, {27})) return 0;
    unsigned low = 0;
    unsigned high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

// Exactly the instructions that the compiler may use in the files of a set (CMakeLists.txt).
bool is_supported(Isa isa) {
    if (isa == Isa::scalar) return true;
    const unsigned states = saved_states();
    const Registers one = cpuid(1);
    const Registers seven = cpuid(7);
    // pclmul sse4.2 popcnt avx f16c; bmi avx2 bmi2; lzcnt
    const bool has_avx2 = has(states, {1, 2}) && has(one.ecx, {1, 20, 23, 28, 29}) &&
                          has(seven.ebx, {3, 5, 8}) && has(cpuid(0x80000001).ecx, {5});
    if (isa == Isa::avx2) return has_avx2;
    // avx512 f dq bw vl; vbmi vbmi2 vpclmulqdq
    return has_avx2 && has(states, {5, 6, 7}) && has(seven.ebx, {16, 17, 30, 31}) &&
           has(seven.ecx, {1, 6, 10});
}

#elif defined(ORBITSPLIT_ISA_ARM) && defined(__linux__)

// NEON is part of every 64-bit ARM processor, the checksum instruction of all since ARMv8.1.
bool is_supported(Isa isa) { return isa == Isa::scalar || (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }

#elif defined(ORBITSPLIT_ISA_ARM)

bool is_supported([[maybe_unused]] Isa isa) {
#if defined(__ARM_FEATURE_CRC32)
    return true;
#else
    return isa == Isa::scalar;
#endif
}

#else

bool is_supported(Isa) { return true; }

#endif

const Kernels& find(std::string_view name, std::string_view source) {
    for (const Kernels& set : sets)
        if (name_of(set) == name && is_supported(set.isa)) return set;
    std::string valid;
    for (const std::string& other : isas()) valid += (valid.empty() ? "" : ", ") + other;
    throw std::invalid_argument(std::string(source) + " is \"" + std::string(name) +
                                "\"; this processor and build have " + valid);
}

const Kernels& choose() {
    const char* wanted = std::getenv("ORBITSPLIT_ISA");
    if (wanted != nullptr && *wanted != '\0') return find(wanted, "ORBITSPLIT_ISA");
    const Kernels* best = sets;
    for (const Kernels& set : sets)
        if (is_supported(set.isa)) best = &set;
    return *best;
}

std::atomic<const Kernels*> chosen = nullptr;

}  // namespace

const Kernels& kernels::active() {
    const Kernels* set = chosen.load(std::memory_order_acquire);
    if (set != nullptr) return *set;
    // If another thread has selected one in the meantime, possibly by set_isa(), that one is kept.
    const Kernels& best = choose();
    return chosen.compare_exchange_strong(set, &best) ? best : *set;
}

std::string_view isa() { return name_of(kernels::active()); }

std::vector<std::string> isas() {
    std::vector<std::string> supported;
    for (const Kernels& set : sets)
        if (is_supported(set.isa)) supported.emplace_back(name_of(set));
    return supported;
}

void set_isa(std::string_view name) { chosen.store(&find(name, "isa"), std::memory_order_release); }

}  // namespace orbitsplit
