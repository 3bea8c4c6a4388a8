#include "support/isa.hpp"

#include <atomic>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "orbitsplit/codec.hpp"

#if defined(ORBITSPLIT_ISA_X86)
#include <cpuid.h>
#elif defined(ORBITSPLIT_ISA_ARM) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace orbitsplit {

namespace {

// Those that this build has, from the slowest to the fastest.
constexpr Isa built[] = {
    Isa::scalar,
#if defined(ORBITSPLIT_ISA_X86)
    Isa::avx2,
    Isa::avx512,
#elif defined(ORBITSPLIT_ISA_ARM)
    Isa::neon,
#endif
};

constexpr std::string_view names[] = {"scalar", "avx2", "avx512", "neon"};

std::string_view name_of(Isa isa) { return names[static_cast<std::size_t>(isa)]; }

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

bool is_supported(Isa isa) { return isa == Isa::scalar; }

#endif

Isa find(std::string_view name, std::string_view source) {
    for (const Isa isa : built)
        if (name_of(isa) == name && is_supported(isa)) return isa;
    std::string valid;
    for (const std::string& other : isas()) valid += (valid.empty() ? "" : ", ") + other;
    throw std::invalid_argument(std::string(source) + " is \"" + std::string(name) +
                                "\"; this processor and build have " + valid);
}

Isa choose() {
    const char* wanted = std::getenv("ORBITSPLIT_ISA");
    if (wanted != nullptr && *wanted != '\0') return find(wanted, "ORBITSPLIT_ISA");
    Isa best = Isa::scalar;
    for (const Isa isa : built)
        if (is_supported(isa)) best = isa;
    return best;
}

constexpr int unchosen = -1;
std::atomic<int> chosen = unchosen;

}  // namespace

Isa active_isa() {
    int isa = chosen.load(std::memory_order_acquire);
    if (isa != unchosen) return static_cast<Isa>(isa);
    // If another thread has selected one in the meantime, possibly by set_isa(), that one is kept.
    const Isa best = choose();
    return chosen.compare_exchange_strong(isa, static_cast<int>(best)) ? best : static_cast<Isa>(isa);
}

std::string_view isa() { return name_of(active_isa()); }

std::vector<std::string> isas() {
    std::vector<std::string> supported;
    for (const Isa isa : built)
        if (is_supported(isa)) supported.emplace_back(name_of(isa));
    return supported;
}

void set_isa(std::string_view name) {
    chosen.store(static_cast<int>(find(name, "isa")), std::memory_order_release);
}

}  // namespace orbitsplit
