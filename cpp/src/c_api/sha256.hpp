// SHA-256 (FIPS 180-4), the checksum of our .safetensors files.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace orbitsplit::c_api {

class Sha256 {
  public:
    void add(std::span<const std::byte> bytes);
    // 64 hexadecimal digits. Nothing may be added after it.
    std::string finish();

  private:
    void add_block(const std::byte* block);

    std::array<std::uint32_t, 8> state_{0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A,
                                        0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19};
    std::array<std::byte, 64> pending_{};
    std::size_t pending_bytes_ = 0;
    std::uint64_t bytes_ = 0;
};

}  // namespace orbitsplit::c_api
