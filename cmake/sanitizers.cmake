# DSV3_SANITIZE=address,undefined or =thread instruments everything that is built here.
if(DSV3_SANITIZE)
  add_compile_options(-fsanitize=${DSV3_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${DSV3_SANITIZE})
endif()
