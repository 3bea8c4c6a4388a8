#include "decoder/kernels/vector/rows.hpp"

namespace orbitsplit::decoder {

constinit const Kernels avx2::decoder_kernels = all_kernels;

}  // namespace orbitsplit::decoder
