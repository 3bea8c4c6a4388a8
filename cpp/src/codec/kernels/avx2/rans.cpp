#include "codec/kernels/vector/rans.hpp"

#include "codec/kernels/avx2/octets.hpp"
#include "codec/kernels/avx2/values.hpp"

namespace orbitsplit::kernels {

constinit const Rans avx2::rans = {
    encode<Octets>,
    decode<Octets>,
    encode_values<Octets, PlanesOfBlocks<ValueBlocks>>,
    decode_values<Octets, PlanesOfBlocks<ValueBlocks>>,
};

}  // namespace orbitsplit::kernels
