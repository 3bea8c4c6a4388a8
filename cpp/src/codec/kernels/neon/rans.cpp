#include "codec/kernels/vector/rans.hpp"

#include "codec/kernels/neon/octets.hpp"
#include "codec/kernels/neon/values.hpp"

namespace orbitsplit::kernels {

constinit const Rans neon::rans = {
    encode<Octets>,
    decode<Octets>,
    encode_values<Octets, PlanesOfBlocks<ValueBlocks>>,
    decode_values<Octets, PlanesOfBlocks<ValueBlocks>>,
};

}  // namespace orbitsplit::kernels
