// Rows of numbers from a file's bytes to float32, exactly as dtype.h converts single ones. Touches no files.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dsv3/tensor/dtype.h"

namespace dsv3::weights {

/// True for the dtypes that decode() and decode_e4m3() take together: F32, BF16, F16 and F8_E4M3.
bool is_float(DType dtype);

/// out[i] = source[i] for `n` numbers of F32, BF16 or F16; `source` need not be aligned.
void decode(DType dtype, const uint8_t* source, size_t n, float* out);

/// out[i] = e4m3(source[i]) * scale.
void decode_e4m3(const uint8_t* source, size_t n, float scale, float* out);

}  // namespace dsv3::weights
