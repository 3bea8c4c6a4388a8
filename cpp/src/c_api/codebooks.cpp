// Codebooks and their codecs.
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "c_api/codebook.hpp"
#include "c_api/codec_handle.hpp"
#include "c_api/status.hpp"
#include "orbitsplit/c_api.h"

using namespace orbitsplit;
using namespace orbitsplit::c_api;

struct orbitsplit_codebook {
    Codebook book;
};

namespace {

// Runs what reads untrusted bytes: whatever is invalid in them is an invalid file.
template <class Read>
auto reading(const std::string& what, Read read) {
    try {
        return read();
    } catch (const std::invalid_argument& error) {
        throw StatusError(ORBITSPLIT_INVALID_FILE, what + ": " + error.what());
    }
}

orbitsplit_codebook* book_of(std::vector<std::byte> bytes, const std::string& what) {
    return reading(what + " is not a valid codebook",
                   [&] { return new orbitsplit_codebook{Codebook(std::move(bytes))}; });
}

std::vector<std::byte> bytes_of_file(const char* path) {
    const auto refuse = [&] {
        throw StatusError(ORBITSPLIT_FILE_ERROR,
                          std::string(path) + " cannot be read: " + std::generic_category().message(errno));
    };
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path, "rb"), std::fclose);
    if (file == nullptr) refuse();
    constexpr std::size_t step = std::size_t{1} << 20;
    std::vector<std::byte> bytes;
    for (std::size_t size = 0;;) {
        bytes.resize(size + step);
        const std::size_t found = std::fread(bytes.data() + size, 1, step, file.get());
        size += found;
        if (found == step) continue;
        if (std::ferror(file.get()) != 0) refuse();
        bytes.resize(size);
        return bytes;
    }
}

const CodebookLevel& level_of(const Codebook& book, std::int32_t cut, std::int32_t level) {
    const auto found = book.cuts().find(cut);
    if (found == book.cuts().end())
        throw StatusError(ORBITSPLIT_NOT_FOUND, "cut " + std::to_string(cut) + " was not calibrated");
    const std::size_t count = found->second.size();
    if (level < 0 || static_cast<std::size_t>(level) >= count)
        throw StatusError(ORBITSPLIT_NOT_FOUND, "cut " + std::to_string(cut) + " has levels 0 to " +
                                                    std::to_string(count - 1) + ", not " +
                                                    std::to_string(level));
    return found->second[static_cast<std::size_t>(level)];
}

}  // namespace

extern "C" {

orbitsplit_status orbitsplit_codebook_open(const char* path, orbitsplit_codebook** codebook,
                                           orbitsplit_error* error) {
    return guarded(error, [&] {
        needed(codebook, "codebook");
        *codebook = book_of(bytes_of_file(&needed(path, "path")), path);
    });
}

orbitsplit_status orbitsplit_codebook_parse(const void* bytes, size_t size, orbitsplit_codebook** codebook,
                                            orbitsplit_error* error) {
    return guarded(error, [&] {
        needed(codebook, "codebook");
        const std::span given = bytes_of(bytes, size, "bytes");
        *codebook = book_of({given.begin(), given.end()}, "what bytes holds");
    });
}

void orbitsplit_codebook_free(orbitsplit_codebook* codebook) { delete codebook; }

uint64_t orbitsplit_codebook_id(const orbitsplit_codebook* codebook) {
    return codebook != nullptr ? codebook->book.id() : 0;
}

size_t orbitsplit_codebook_cut_count(const orbitsplit_codebook* codebook) {
    return codebook != nullptr ? codebook->book.cuts().size() : 0;
}

int32_t orbitsplit_codebook_cut(const orbitsplit_codebook* codebook, size_t index) {
    if (index >= orbitsplit_codebook_cut_count(codebook)) return -1;
    return std::next(codebook->book.cuts().begin(), static_cast<std::ptrdiff_t>(index))->first;
}

size_t orbitsplit_codebook_level_count(const orbitsplit_codebook* codebook, int32_t cut) {
    if (codebook == nullptr) return 0;
    const auto found = codebook->book.cuts().find(cut);
    return found != codebook->book.cuts().end() ? found->second.size() : 0;
}

orbitsplit_status orbitsplit_codebook_level(const orbitsplit_codebook* codebook, int32_t cut, int32_t level,
                                            orbitsplit_level_info* info, orbitsplit_error* error) {
    return guarded(error, [&] {
        const CodebookLevel& found = level_of(needed(codebook, "codebook").book, cut, level);
        orbitsplit_level_info known{};
        known.name = found.name.c_str();
        known.bits_per_element = found.bits_per_element;
        known.loss = found.loss;
        known.loss_error = found.loss_error;
        known.encode_s_per_byte = found.encode_s_per_byte;
        known.decode_s_per_byte = found.decode_s_per_byte;
        write_struct(info, known, "info");
    });
}

orbitsplit_status orbitsplit_codebook_codec(const orbitsplit_codebook* codebook, int32_t cut, int32_t level,
                                            orbitsplit_codec** codec, orbitsplit_error* error) {
    return guarded(error, [&] {
        needed(codec, "codec");
        const Codebook& book = needed(codebook, "codebook").book;
        const CodebookLevel& found = level_of(book, cut, level);
        const std::string what = "the codec of level " + std::to_string(level) + " at cut " +
                                 std::to_string(cut) + " is not valid";
        *codec = reading(what, [&] {
            if (found.codec) return new orbitsplit_codec{*found.codec};
            return new orbitsplit_codec{std::make_shared<const CalibratedCodec>(book.codec_of(cut, level))};
        });
    });
}
}
