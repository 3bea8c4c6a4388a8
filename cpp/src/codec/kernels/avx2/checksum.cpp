#include "codec/kernels/vector/checksum.hpp"

#include <nmmintrin.h>

namespace orbitsplit::kernels {

namespace {

struct Instruction {
    static std::uint32_t of_word(std::uint32_t crc, std::uint64_t word) {
        return static_cast<std::uint32_t>(_mm_crc32_u64(crc, word));
    }
    static std::uint32_t of_byte(std::uint32_t crc, unsigned char byte) { return _mm_crc32_u8(crc, byte); }
};

}  // namespace

constinit const Checksum avx2::checksum = {update_by_instruction<Instruction>};

}  // namespace orbitsplit::kernels
