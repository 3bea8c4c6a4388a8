#include "codec/kernels/vector/checksum.hpp"

#include <arm_acle.h>

namespace orbitsplit::kernels {

namespace {

struct Instruction {
    static std::uint32_t of_word(std::uint32_t crc, std::uint64_t word) { return __crc32cd(crc, word); }
    static std::uint32_t of_byte(std::uint32_t crc, unsigned char byte) { return __crc32cb(crc, byte); }
};

}  // namespace

constinit const Checksum neon::checksum = {update_by_instruction<Instruction>};

}  // namespace orbitsplit::kernels
