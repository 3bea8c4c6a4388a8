// Instruction sets, and the one whose kernels run; isa(), isas() and set_isa() of the public interface are defined beside
// it. Each folder of kernels has a dispatch.cpp with its tables by instruction set.
#pragma once

#include <cstdint>

namespace orbitsplit {

enum class Isa : std::uint8_t { scalar, avx2, avx512, neon };

// Selected on first use, by ORBITSPLIT_ISA if that is set (std::invalid_argument unless isas() has it), and by
// set_isa(). Always one that isas() has.
Isa active_isa();

}  // namespace orbitsplit
