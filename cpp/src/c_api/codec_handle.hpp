// The codec behind an orbitsplit_codec.
#pragma once

#include <memory>
#include <variant>

#include "orbitsplit/c_api.h"
#include "orbitsplit/calibrated.hpp"
#include "orbitsplit/codec.hpp"

// Encoders and decoders share a calibrated codec, so that handles may be freed in any order.
struct orbitsplit_codec {
    std::variant<orbitsplit::Codec, std::shared_ptr<const orbitsplit::CalibratedCodec>> codec;

    const orbitsplit::CalibratedCodec* calibrated() const {
        const auto* shared = std::get_if<std::shared_ptr<const orbitsplit::CalibratedCodec>>(&codec);
        return shared != nullptr ? shared->get() : nullptr;
    }
};
